"""Building blocks of configurations.

section     the base of all sections, which knows which of their fields determine a result
names       validated names of runs, and of functions and classes in a user's own package
duration    lengths of time such as `5m`
own_code    importing code of a user's own package, and the digest of its source
registry    parts that are chosen by `type`: a registry entry, or a class of a user's own package

A section is defined beside the code that reads it; `optune_core.config` puts them together. To add a part (a selector,
a loss, a reward, an engine, a kind of evaluation), write one class in one file and one line in the registry of its
folder.
"""
