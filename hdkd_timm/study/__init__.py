"""Comparing networks and distillation methods over seeds, on one data set and with one teacher.

config    settings: arms (named settings of `distill`), seeds, baseline
checks    what all runs share: images, teacher and settings, compared before anything is trained
runs      the runs of a study, in processes of their own, resumed or skipped where they exist
results   mean, spread over seeds, and paired intervals against the baseline
page      the table as CSV and Markdown, the picture, and the page
"""
