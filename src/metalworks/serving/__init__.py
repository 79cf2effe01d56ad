"""The inference server: serves one registered model over MLflow's scoring protocol and the Open Inference Protocol.

- `rollout` decides which versions serve: the supervisor, the launcher, the equivalence check and the canary's trial.
- `http` answers requests: the worker processes and their application.
- `predict` turns a request into a prediction: codecs, batching, ONNX Runtime, the client of the model's own process,
  the shadow.
- `telemetry` counts requests, exposes the counts as metrics, and writes the prediction log.

docs/serving-files.md describes the files by which the processes speak to each other.
"""
