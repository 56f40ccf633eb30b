"""What a model is told to do with a video: Drive-VLM's two granularities (its "split entry" prompts), word for word."""

MODES: dict[str, str] = {
    "detailed": "Describe the video in detail.",
    "concise": "Summarize the driving scene concisely.",
}
RAW_CAPTION = "Describe the video."  # for captions as they were found, of neither granularity
