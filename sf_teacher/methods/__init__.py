"""The methods, one file each. A file that starts with an underscore is what only one of them, or a few, need.

A new method is one new file here and nothing else: see `base.Method`. No loops, no settings of runs, no export.
"""
from .registry import METHODS, get_method, make_method, register_method

__all__ = ['METHODS', 'get_method', 'make_method', 'register_method']
