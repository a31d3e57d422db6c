"""The contract's half of the oracle, under the name that tests know it by."""

from tokenprune.verify.masking import hidden_by_mask as hidden_by_mask
