"""Drop-in replacements: modules in which only the import line of a published script changes.

:mod:`gqc.compat.torch_gqc`, :mod:`gqc.compat.vgs` and :mod:`gqc.compat.upgd` have the names,
keywords and file formats of what was published; behaviour is that of :mod:`gqc`.  Each is imported
only when it is asked for.
"""
