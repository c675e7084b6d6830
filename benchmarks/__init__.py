"""What diffadapt costs, each figure beside the floor or the peer it is compared with, measured in the same run.

One module per question (`load`, `merge`, `switch`, `forward`), each with a `measure()` that returns plain numbers.
`run` writes them to `results/`, `render` writes the results into README.md.
"""
