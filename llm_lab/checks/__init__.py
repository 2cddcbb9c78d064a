"""The checks of the exercises, a file for each chapter.

`check_name(answer)` prints what it confirmed, or raises `CheckFailed` with a diagnosis.
"""
