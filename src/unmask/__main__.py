from unmask.cli.main import main

main()
