"""The garbage collector of a process: off during its imports, then without the objects of its start.

worker/cli/app.py and worker/local/prestart.py begin with gc.disable(), because imported objects live to the
end. `freeze` enables the collector again when the work of the process begins.
"""

import gc

YOUNG_OBJECTS = 40_000
"""New objects between two collections: about four megabytes.

With Python's default of 700, most collections traverse fetches that are still in flight. With 10,000, they
traverse lanes that are still held if each of many hosts has one fetch.
"""


def freeze() -> None:
    """Exempt all objects that exist now from garbage collection, enable it, and collect later ones rarely.

    For a process that has started up, or is about to end. Garbage among these objects is never freed, because
    a collection first would take as long as many fetches.
    """
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS)
    gc.enable()
