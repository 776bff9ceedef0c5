"""What people read: saved notebooks, pages of runs, figures for print, new experiments."""
