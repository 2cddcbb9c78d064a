"""What the book needs beside the models: checks, pictures, costs, counting, recorded results."""
