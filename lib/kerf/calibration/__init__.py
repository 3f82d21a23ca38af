"""Calibration: the inputs of every layer on real text, one layer after another, in bounded memory."""
