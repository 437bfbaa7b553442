-- Makes every gateway forget the failures of the user ARGV[1].
return announce('forgive', ARGV[1])
