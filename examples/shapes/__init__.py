"""The small world that the embedded Shapes pipelines know: what is in a picture, how it is drawn, how it is judged."""
