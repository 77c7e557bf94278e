"""`python -m vidsieve` is `vidsieve`."""

import sys

from vidsieve.cli import main

sys.exit(main())
