"""Ways to choose the codes of a packed matrix: AWQ, GPTQ, HQQ, SmoothQuant."""
