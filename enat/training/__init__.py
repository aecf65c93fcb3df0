"""What training needs beside a network: the base of the LightningModules, and schedules of the learning rate."""
