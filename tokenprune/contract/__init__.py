"""What every scorer, schedule, merger and adapter must do, as tests of whatever is installed.

    pytest --pyargs tokenprune.contract --tokenprune-scorer knorm

In a plugin's own tests:

    from tokenprune.contract import test_scorer

    class TestKnorm(test_scorer.TestScorer):
        parts = ("knorm",)
"""
