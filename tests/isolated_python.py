"""The first lines of a program that cannot import our packages, except from the Hub, a checkpoint or a wheel."""

# The editable install is an import finder; folders on the path are left to the program.
WITHOUT_EDITABLE_INSTALL = """
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
"""
WITHOUT_OUR_PACKAGE = f"""{WITHOUT_EDITABLE_INSTALL}
try:
    import modeling_pcmanet
    sys.exit("our package can be imported here")
except ImportError:
    pass
"""
