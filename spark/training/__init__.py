"""The training loop and its building blocks: optimizer, schedules, non-finite guard, presets."""
