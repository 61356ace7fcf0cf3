"""What tests share: launchers with a time limit, files of known content, slow twins."""
