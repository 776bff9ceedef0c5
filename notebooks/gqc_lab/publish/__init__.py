"""What people read: saved notebooks, pages, the site, figures for print, new experiments."""
