"""Numbers without graphs: schemes, parameters, quantizers, observers, calibration data, metrics."""
