"""The form in which rows and predictions travel through the server."""

import numpy as np

Arrays = list[np.ndarray]
"""Inputs: one matrix (rows x columns) where all columns are numbers of one type, the one tensor of a model without
columns, or else one array per column, of dtype object for text. Outputs: one array per output. In all of them the
first axis is the rows.
"""
