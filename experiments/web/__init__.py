"""The page in the browser that draws and edits images (docs/page.md); only `interface` and `launching` need gradio."""
