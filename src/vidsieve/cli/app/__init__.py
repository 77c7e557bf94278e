"""The page of `vidsieve app`: `service` answers, `page` shows it with Gradio, `serve` runs both until Ctrl-C."""
