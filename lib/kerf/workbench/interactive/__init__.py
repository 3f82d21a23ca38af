"""The panel of `explore`: what it shows while somebody moves a slider."""
