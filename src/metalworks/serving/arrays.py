"""The form of inputs and outputs inside the server."""

import numpy as np

Arrays = list[np.ndarray]
"""Inputs: one matrix (rows x columns) if all columns are numbers of one type; the tensor of a model without columns;
otherwise one array per column, with dtype object for text. Outputs: one array per output. The first axis is the rows.
"""
