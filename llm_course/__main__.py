"""`python -m llm_course ...` is `llm-course ...`."""

from __future__ import annotations

import sys

from llm_course.cli import main

sys.exit(main(sys.argv[1:]))
