"""Start the program: the folder of this file is where Python's isolated mode finds the package."""

from platform_status.server import main  # type: ignore[import-not-found]  # found on the host alone

main()
