"""The inference server: one registered model behind MLflow's scoring protocol and the Open Inference Protocol.

`supervisor` is the service's main process. It starts the HTTP processes (`front`) and one process per version of the
model (the package metalworks_model_runner, in the environment of that version), and decides which version answers.
"""
