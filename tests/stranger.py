"""The start of a program that finds our package nowhere: what it imports of it comes from the Hub, a checkpoint or a wheel."""

# The editable install is a finder of its own; folders that could hold the packages are left to the program.
WITHOUT_EDITABLE_INSTALL = """
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
"""
STRANGER = f"""{WITHOUT_EDITABLE_INSTALL}
try:
    import modeling_pcmanet
    sys.exit("our package is importable here")
except ImportError:
    pass
"""
