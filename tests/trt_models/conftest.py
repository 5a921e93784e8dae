from danqing.profiling.bench.published import mend_torchvision

mend_torchvision()  # before any test imports transformers
