"""`python -m sf_teacher`, which is what torchrun starts."""
import sys

from .cli.app import main

sys.exit(main())
