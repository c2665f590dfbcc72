"""``python -m trilemma.cli``, which is what launchers such as torchrun start."""

import sys

from .main import main

sys.exit(main())
