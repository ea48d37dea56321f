"""An OpenAI-compatible server over the engine: `pixtral serve`."""
