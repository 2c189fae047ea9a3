"""Models as exporters need them: how they are called, and on which inputs they are compared."""
