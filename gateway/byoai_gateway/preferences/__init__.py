"""What each user chose: who answers, with which model, key and address."""
