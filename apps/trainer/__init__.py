"""Trains an adapter on a folder of pictures: `diffadapt train settings.toml`, or from Python:

from diffadapt.apps.trainer.loop import train
from diffadapt.apps.trainer.settings import read_settings

file = train(read_settings("style.toml", {"training.steps": 500}))
"""
