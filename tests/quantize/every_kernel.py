"""All that is compiled, for tests of what holds for every kernel."""

from ggufsmith.quantize.ahead import all_kernels as all_kernels
