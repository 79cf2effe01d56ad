"""The files by which processes of an inference host speak to each other. Imports the standard library alone."""

CARD = "model.json"
FACTS = "facts.json"
SAMPLES = "samples.bin"
VERDICT = "verdict.json"
