"""Adapter files to other dialects, sizes and algorithms, in batches; and libraries of them.

plan       what is asked for, the same for all files
jobs       which files, and where what is made of them goes
change     an adapter as the plan wants it
work       one file, from reading to its final name
provenance what a file says about where it came from, and its hashes
local      many files, on the cores of this machine
journal    what is done, so that a stopped run goes on
command    the command line
"""
