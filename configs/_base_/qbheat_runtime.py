# default_runtime.py with the statistics of the heat equation's generators in the log.
_base_ = './default_runtime.py'

default_hooks = dict(heat_statistics=dict(type='HeatStatisticsHook'))
