"""The kind `alpaca_eval`, by the library alpaca-eval.

config            the evaluation: its fields, its stages in order, its table
sections          instructions and annotator in the configuration
data              reference outputs, and the calibration of length control
annotator_files   an annotator's definition; annotator asks it through the library
annotations       stage: answers compared with the reference outputs
win_rate          stage: the win rates; length_control is the library's regression
"""
