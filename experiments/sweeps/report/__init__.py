"""What a sweep found: `data` (rows, tables), `charts` (what they show), `pictures` (matplotlib), `page` (plotly)."""
