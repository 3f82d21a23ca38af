"""Figures from plain numbers: matplotlib for notebooks, inline SVG for the report's page."""
