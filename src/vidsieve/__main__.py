"""`python -m vidsieve` is `vidsieve`."""

import sys

from vidsieve.cli.main import main

sys.exit(main())
