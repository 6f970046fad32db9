"""Reports: what runs and studies have shown, with its statistics, as a page, as Markdown and as raw numbers."""
