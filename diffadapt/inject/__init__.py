"""Applying deltas to modules: live as side branches, or merged into weights with an exact way back.

Strength is applied here and nowhere else: W' = W + sum_i m_i delta_i(W), every delta taken against the base weight.
"""
