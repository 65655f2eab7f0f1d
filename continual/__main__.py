"""``python -m continual``."""

from continual.cli import main

raise SystemExit(main())
