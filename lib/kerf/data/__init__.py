"""Text that models are calibrated and measured on: where it comes from, how it is split and segmented."""
