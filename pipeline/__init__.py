"""The stages that replicate the LU-Net paper: data, train, evaluate, measure, collect, report."""
