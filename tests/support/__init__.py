"""What tests share: small models, made-up results, attacks, and a browser on JupyterLab."""
